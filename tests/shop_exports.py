"""Small exports as the shops write them, with what is and is not seen in the shop."""

from __future__ import annotations

# By format: the ids that the shop shows, and the file. What it does not is off, a draft, or seen
# in no list.
EXPORTS: dict[str, tuple[str, str]] = {
    "Magento product export": ("24-A 24-D SOFA SOFA-RED SOFA-BLUE", """\
sku,store_view_code,attribute_set_code,product_type,name,product_online,visibility,price,base_image,\
configurable_variations
24-A,,Default,simple,Oak chair,1,"Catalog, Search",99.0000,gray.png,
24-A,de,,,Eichenstuhl,2,,,,
24-B,,Default,simple,Old chair,2,"Catalog, Search",99.0000,gray.png,
24-C,,Default,simple,Set of screws,1,Not Visible Individually,9.0000,gray.png,
24-D,,Default,simple,Chair of one store,2,Search,79.0000,gray.png,
24-D,fr,,,Chaise,1,,,,
SOFA-RED,,Sofa,simple,Sofa-Red,1,Not Visible Individually,499.0000,red.png,
SOFA-BLUE,,Sofa,simple,Sofa-Blue,1,Not Visible Individually,399.0000,gray.png,
SOFA-GONE,,Sofa,simple,Sofa-Gone,2,Not Visible Individually,299.0000,gray.png,
SOFA,,Sofa,configurable,Sofa,1,"Catalog, Search",0.0000,red.png,"sku=SOFA-RED,\
color=Red|sku=SOFA-BLUE,color=Blue|sku=SOFA-GONE,color=Gone"
BED-S,,Bed,simple,Bed-S,1,Not Visible Individually,499.0000,red.png,
BED,,Bed,configurable,Bed,2,"Catalog, Search",,red.png,"sku=BED-S,size=S"
"""),
    "Magento 1 product export": ("A1 A3", """\
sku,_store,_attribute_set,_type,_product_websites,name,price,status,visibility,image
A1,,Default,simple,base,Oak chair,99,1,2,gray.png
A2,,Default,simple,base,Old chair,99,2,4,gray.png
A3,,Default,configurable,base,Sofa,99,1,4,red.png
"""),
    "WooCommerce product export": ("1 3 4 5 7", """\
ID,Type,SKU,Name,Published,"Is featured?","Visibility in catalog","In stock?","Regular price",\
Categories,Images,Parent
1,simple,c1,Oak chair,1,0,visible,1,99,Chairs,gray.png,
2,simple,c2,Gift wrap,1,0,hidden,1,9,Chairs,gray.png,
3,simple,c3,Chair to search,1,0,search,1,99,Chairs,gray.png,
4,simple,c4,Chair to browse,1,0,catalog,1,99,Chairs,gray.png,
5,variable,c5,Sofa,1,0,visible,1,,Sofas,gray.png,
6,variation,c5-r,Sofa - Red,0,0,visible,1,199,,red.png,c5
7,variation,c5-b,Sofa - Blue,1,0,visible,1,399,,gray.png,c5
8,variable,c8,Bed,1,0,hidden,1,,Beds,gray.png,
9,variation,c8-r,Bed - Red,1,0,visible,1,499,,red.png,c8
"""),
    "WooCommerce product export, German": ("1", """\
ID;Typ;Artikelnummer;Name;Veröffentlicht;Ist hervorgehoben?;Sichtbarkeit im Katalog;Vorrätig?;\
Regulärer Preis;Bilder
1;simple;c1;Eichenstuhl;1;0;visible;1;"1.299,00";gray.png
2;simple;c2;Geschenkpapier;1;0;hidden;1;9;gray.png
3;simple;c3;Entwurf;-1;0;visible;1;99;gray.png
"""),
    "Ecwid product export": ("101", """\
type,product_internal_id,product_sku,product_name,product_price,product_is_available,\
product_media_main_image_url,product_option_name
product,101,SKU1,Oak chair,99.00,true,gray.png,
product_option,101,,,,,,Color
product_variation,101,,,89.00,,red.png,
product,102,SKU2,Old chair,99.00,false,gray.png,
product_variation,102,,,89.00,true,red.png,
"""),
    "Wix product export": ("product_1", """\
handleId,fieldType,name,description,productImageUrl,collection,sku,ribbon,price,surcharge,visible,inventory
product_1,Product,Oak chair,<p>Oak</p>,gray.png;red.png,Chairs,,,99,,true,InStock
product_1,Variant,,,,,s-r,,,10,false,5
product_2,Product,Old chair,<p>Oak</p>,gray.png,Chairs,,,99,,false,InStock
product_2,Variant,,,,,s-r,,,10,true,5
"""),
    "Wix product export, new": ("oak sofa", """\
handle,fieldType,name,visible,plainDescription,media,mediaAltText,ribbon,brand,price,inventory,sku,\
productOptionName[1]
oak,PRODUCT,Oak chair,TRUE,<p>Oak</p>,gray.png,,,Oslo,99,,c1,
oak,MEDIA,,,,red.png,,,,,,,
old,PRODUCT,Old chair,FALSE,,gray.png,,,Oslo,99,,c1,Color
old,VARIANT,,TRUE,,,,,,99,5,c1,Color
sofa,PRODUCT,Sofa,TRUE,,red.png,,,Oslo,,,,Color
sofa,VARIANT,,TRUE,,,,,,299,5,c1,Color
"""),
    "BigCommerce product export": ("77 79", """\
Item,ID,Name,Type,SKU,Options,Current Stock,Price,Is Visible,Variant Image URL,Internal Image URL (Export)
Product,77,Oak chair,physical,c1,,0,99,TRUE,,
Image,9,,,,,,,,,gray.png
Product,78,Old chair,physical,c2,,0,99,FALSE,,
Image,10,,,,,,,,,gray.png
Product,79,Sofa,physical,c3,,0,99,TRUE,,
Variant,5,,,c3-r,Type=Swatch|Name=Color|Value=Red[#f00],3,89,,red.png,
"""),
    "BigCommerce product export of before 2023": ("77 79", """\
Item Type,Product ID,Product Name,Product Type,Product Code/SKU,Price,Allow Purchases?,\
Product Visible?,Product Image File - 1
Product,77,Oak chair,P,c1,99,N,Y,gray.png
Product,78,Old chair,P,c2,99,Y,N,gray.png
Product,79,Sofa,P,c3,99,Y,Y,gray.png
  SKU,77,"[CS]Color=Red:#f00,[RT]Size=L",,c3-r,,,,red.png
"""),
    "Squarespace product export": ("60a", """\
Product ID [Non Editable],Variant ID [Non Editable],Product Page,Product URL,Title,SKU,Price,Stock,\
Visible,Hosted Image URLs
60a,1,store,oak,Oak chair,SQ1,99.00,5,Yes,gray.png red.png
,2,,,,SQ2,89.00,Unlimited,,
60b,3,store,old,Old chair,SQ3,99.00,5,No,gray.png
"""),
    "Lightspeed eCom product export": ("1 3", """\
Internal_ID;Internal_Variant_ID;Visible;Brand;NL_Title_Short;US_Title_Short;Price;Stock_Level;Images
1;11;Y;Oslo;Stoel;Chair;99;5;gray.png,red.png
1;12;Y;Oslo;Stoel;Chair;89;5;
2;13;N;Oslo;Oude stoel;Old chair;99;5;gray.png
3;14;S;Oslo;Tafel;Table;99;5;gray.png
"""),
    "Shopware product export": ("SW1 SW1.1", """\
id;parent_id;product_number;active;stock;name;price_net;price_gross;cover_media_url
a1;;SW1;1;5;Sofa;83;99;gray.png
a2;a1;SW1.1;;5;;;;
a3;;SW2;0;5;Old sofa;83;99;gray.png
a4;a3;SW2.1;1;5;;;;
"""),
    "Amazon flat file": ("c1", """\
item-name\titem-description\tlisting-id\tseller-sku\tprice\tquantity\timage-url\tasin1\tstatus
Oak chair\tOak\tL1\tc1\t99\t5\tgray.png\tB01\tActive
Old chair\tOak\tL2\tc2\t99\t0\tgray.png\tB02\tInactive
"""),
    "eBay listings report": ("1101 1102", """\
Item number,Title,Variation details,Custom label (SKU),Available quantity,Format,Currency,Current price
1101,Oak chair,,c1,5,FIXED_PRICE,USD,99.0
1102,Sofa,,,8,FIXED_PRICE,USD,
1102,,Color=Red,c2-r,5,FIXED_PRICE,USD,499.0
"""),
    "PrestaShop": ("1 4 5", """\
ID;Active (0/1);Name *;Categories (x,y,z...);Price tax excluded;Quantity;Visibility;\
Available for order (0 = No, 1 = Yes);Image URLs (x,y,z...)
1;1;Oak chair;Chairs;99.00;5;both;0;gray.png,red.png
2;0;Old chair;Chairs;99.00;5;both;1;gray.png
3;1;Set of screws;Chairs;9.00;5;none;1;gray.png
4;1;Chair to search;Chairs;9.00;5;search;1;gray.png
5;1;Chair to browse;Chairs;9.00;5;catalog;1;red.png
"""),
    "PrestaShop, French": ("1", """\
ID;Actif (0/1);Nom *;Prix HT;Quantité;Visibilité;URL des images (x,y,z...)
1;1;Chaise;99.00;5;both;gray.png
2;0;Vieille chaise;99.00;5;both;gray.png
"""),
    "OpenCart": ("1", """\
product_id,name(en-gb),name(de-de),quantity,model,image_name,price,status,stock_status_id
1,Oak chair,Eichenstuhl,5,M1,gray.png,99.0000,true,7
2,Old chair,Alter Stuhl,5,M2,red.png,99.0000,false,7
"""),
    "OpenCart, another tool": ("1", """\
Product ID,Name,Model,SKU,Price,Quantity,Image,Status
1,Oak chair,M1,c1,99,5,gray.png,Enabled
2,Old chair,M2,c2,99,5,red.png,Disabled
"""),
    "Shopware 5": ("SW1 SW1.1", """\
ordernumber;mainnumber;name;additionaltext;supplier;active;instock;imageUrl
SW1;SW1;Sofa;Rot;Oslo;1;5;red.png
SW1.1;SW1;Sofa;Grau;Oslo;1;5;gray.png
SW2;SW2;Alter Stuhl;;Oslo;0;5;gray.png
"""),
    "Lightspeed Retail": ("u1", """\
id,handle,sku,name,product_category,supply_price,retail_price,active,inventory_Main_Outlet,image_url
u1,oak,c1,Oak chair,Chairs,,99,1,5,gray.png
u2,old,c2,Old chair,Chairs,,99,0,5,red.png
"""),
    "an ERP": ("1 4", """\
Art.-Nr.;Bezeichnung;Preis;Aktiv;Sichtbar;Bild;Status
1;Eichenstuhl;"1.299,00 €";ja;ja;gray.png;auf Lager
2;Alter Stuhl;"299,00 €";nein;ja;gray.png;auf Lager
3;Tisch;"299,00 €";ja;nein;gray.png;ausverkauft
4;Bank;"299,00 €";JA;WAHR;red.png;ausverkauft
"""),
    "an ERP through a spreadsheet": ("1", """\
id,title,image,published
1,Oak chair,gray.png,1.0
2,Old chair,red.png,0.0
"""),
    "no column of a shop": ("1 2 3", """\
id,title,image,status,active,visible
1,Oak chair,gray.png,in stock,manual,no
2,Recliner,red.png,out of stock,motorized,no
3,Old sofa,red.png,discontinued,no,no
"""),
}  # fmt: skip

# What else real files have in them: the products (id, title, images, price) that `init` and `prepare` make.
Product = tuple[str, str, str, float | None]
ODDITIES: dict[str, tuple[str, list[Product]]] = {
    "a second header for machines": ("""\
Artikelnummer;Bezeichnung;Bild;Preis
sku;name;image;price
1;Stuhl;gray.png;9,00
2;Tisch;red.png;1.299,00
""", [("1", "Stuhl", "gray.png", 9), ("2", "Tisch", "red.png", 1299)]),
    "two files in one": ("""\
\ufeffid,title,image,price
1,Chair,gray.png,9
\ufeffid,title,image,price
2,Table,red.png,8
id,title,image,price
3,Bed,red.png,7
""", [("1", "Chair", "gray.png", 9), ("2", "Table", "red.png", 8), ("3", "Bed", "red.png", 7)]),
    "what columns are for": ("""\
"# Required | A unique id, of at most 100 characters.",# Required | A title,# Required | The price,\
# Required | Image
id,title,price,image_link
1,Chair,9.00 USD,gray.png
2,Table,8.00 USD,red.png
""", [("1", "Chair", "gray.png", 9), ("2", "Table", "red.png", 8)]),
    "a row in each language": ("""\
id_product;id_lang;name;image;price
1;1;Chair;gray.png;9
1;2;Stuhl;gray.png;9
2;1;Table;red.png;8
2;2;Tisch;red.png;8
""", [("1", "Chair", "gray.png", 9), ("2", "Table", "red.png", 8)]),
    "words for no image": ("""\
sku,attribute_set_code,product_websites,name,price,base_image,additional_images
A,Default,base,Chair,9,no_selection,
B,Default,base,Table,8,gray.png,no_selection
C,Default,base,Bed,7,NULL,
D,Default,base,Sofa,6,red.png,N/A
""", [
        ("A", "Chair", "", 9),
        ("B", "Table", "gray.png", 8),
        ("C", "Bed", "", 7),
        ("D", "Sofa", "red.png", 6),
    ]),
    "images as JSON": ("""\
id;title;images
1;Chair;"[{""url"": ""gray.png"", ""alt"": ""in front""}, {""url"": ""red.png""}]"
2;Table;"[""gray.png"",""red.png""]"
3;Bed;['red.png', 'gray.png']
""", [
        ("1", "Chair", "gray.png red.png", None),
        ("2", "Table", "gray.png red.png", None),
        ("3", "Bed", "red.png gray.png", None),
    ]),
    "addresses without a scheme": ("""\
id,title,image
1,Chair,//cdn.shop.example/a.jpg
2,Table,"https://shop.example/w_80,h_60/b.jpg,//cdn.shop.example/c.jpg"
""", [
        ("1", "Chair", "https://cdn.shop.example/a.jpg", None),
        ("2", "Table", "https://shop.example/w_80,h_60/b.jpg https://cdn.shop.example/c.jpg", None),
    ]),
    "prices as people write them": ("""\
id;title;image;price
1;Chair;gray.png;"1.299,00 €"
2;Table;gray.png;"1.299,\u2013 €"
3;Bed;gray.png;"1.299,-- €*"
4;Sofa;gray.png;"ab 99,50 €"
5;Lamp;gray.png;"1 299,00 €"
""", [
        ("1", "Chair", "gray.png", 1299),
        ("2", "Table", "gray.png", 1299),
        ("3", "Bed", "gray.png", 1299),
        ("4", "Sofa", "gray.png", 99.5),
        ("5", "Lamp", "gray.png", 1299),
    ]),
}  # fmt: skip

# Columns that look as if they named a product's variations and name its category, or nothing.
NO_GROUPS = {
    "no parent": [("parent_id", "0"), ("parent_id", "0"), ("parent_id", "0")],
    "a category's name": [("Gruppe", "Stühle"), ("Gruppe", "Stühle"), ("Gruppe", "Tische")],
    "nothing": [("item_group_id", "N/A"), ("item_group_id", "N/A"), ("item_group_id", "-")],
}
